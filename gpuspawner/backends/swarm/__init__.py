"""Docker Swarm as a backend: servers are services, leases are their labels."""
