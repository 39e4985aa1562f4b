# Jupyter's terminals are login shells, and Debian's /etc/profile begins those with a PATH of its own.
PATH=/opt/jupyter/bin:$PATH
