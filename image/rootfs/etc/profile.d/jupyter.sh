# Jupyter's terminals are login shells, and Debian's /etc/profile begins those with a PATH of its own.
PATH=/opt/jupyter/bin:/usr/local/cuda/bin:$PATH
# The link's other end, on a volume from before there was one.
[ -e ~/.ssh ] || [ ! -L ~/.ssh ] || mkdir -m 700 "$(readlink -m ~/.ssh)" 2>/dev/null || true
# What the user installs goes into an environment of their own, and is found there.
eval "$(/usr/local/bin/own-packages --shell "$-")"
