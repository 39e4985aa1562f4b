"""An image of one static program, which is all that a hub takes for a server.

It needs no registry and no build, so that engines of any version have it in a moment.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import docker

IMAGE = "gpuspawner-test/plain:1"
COMMAND = ["/server"]
# One that SIGTERM doesn't end.
DEAF = ["/server", "deaf"]
# With a path: prints that file; with a word behind it: writes the word into it.
FILE = ["/server", "file"]

SERVER = r"""
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char words[] =
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nplain";

/* As `cat`, and `echo WORD > FILE`: the image has no other program. */
static int of_file(int count, char **given)
{
    char text[4096];
    ssize_t size = count > 3 ? (ssize_t)strlen(given[3]) : 0;
    int file = open(given[2], count > 3 ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0644);
    if (file < 0)
        return 1;
    if (count > 3)
        return write(file, given[3], size) != size;
    size = read(file, text, sizeof text);
    return size < 0 || write(1, text, size) != size;
}

static void leave(int number) { (void)number; _exit(0); }

int main(int count, char **given)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8888)};
    int yes = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    char request[65536];
    if (count > 2)
        return of_file(count, given);
    signal(SIGTERM, count > 1 ? SIG_IGN : leave);
    signal(SIGPIPE, SIG_IGN);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(s, (struct sockaddr *)&address, sizeof address) || listen(s, 64))
        return 1;
    for (;;) {
        int peer = accept(s, NULL, NULL);
        if (peer < 0)
            continue;
        if (read(peer, request, sizeof request) >= 0 && write(peer, words, sizeof words - 1) < 0)
            (void)0;
        close(peer);
    }
}
"""


def load(client: docker.APIClient, folder: Path) -> None:
    """Put the image on an engine.

    Args:
        client: of the engine.
        folder: where to compile it.
    """
    source, program = folder / "server.c", folder / "server"
    source.write_text(SERVER)
    words = ["cc", "-static", "-O1", "-Wall", "-Werror", str(source), "-o", str(program)]
    subprocess.run(words, check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("server")
        entry.size, entry.mode = program.stat().st_size, 0o755
        tar.addfile(entry, io.BytesIO(program.read_bytes()))
    repository, tag = IMAGE.split(":")
    client.import_image_from_data(packed.getvalue(), repository, tag)
