"""Messages to users who are elsewhere: by mail or chat, through Apprise."""
