"""What it means for users' files that machines have written and read there, as findings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .findings import NAME, Finding

MOUNT = "mount the file server there, and let /etc/fstab do so at each start of the machine"
SAME_IDS = "see the file server's exports (all_squash, anonuid) and how it maps ids (idmapd.conf)"
READ_ONLY = ("read-only file system",)
FORBIDDEN = ("permission denied", "operation not permitted")


@dataclass(frozen=True)
class Answer:
    """What a service has printed on one machine.

    Args:
        said: its lines, name -> value.
        problem: why it couldn't run there, in the engine's words; "": it could.
    """

    said: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def not_run(place: str, node: str, problem: str) -> Finding:
    """Return what it means that a service with a place didn't run on a machine.

    Args:
        place: what is tried.
        node: the machine's name.
        problem: the engine's words.
    """
    low = problem.lower()
    if "no such image" in low or "pull access denied" in low:
        return Finding(
            "note",
            f"{place} isn't tried on {node}, which hasn't got the image that is tried with",
            "gpuspawner image spread, then run this again",
        )
    if "executable file not found" in low:
        what = f"{place} isn't tried: the image has no shell to try it with"
        return Finding("note", what, "write a file in a server, and read it on another machine")
    if "does not exist" in low and "bind" in low:
        return Finding("failure", f"{node} has no folder {place}: servers don't start there", MOUNT)
    if "doesn't end within" in low:
        what = f"{place} doesn't answer on {node}: {problem}"
        return Finding("failure", what, "there: is the file server in reach? df PLACE")
    what = f"{node} can't give a server {place}: {problem}"
    todo = "there: try the same mount by hand; is nfs-common installed, does the server export it?"
    return Finding("failure", what, todo)


def on_some(place: str, own: str, having: Sequence[str]) -> Finding:
    """Return what it means that a user's folder is there on some machines only.

    Args:
        place: what is tried.
        own: the folder in it.
        having: the names of the machines that have it.
    """
    return Finding(
        "failure",
        f"{place} isn't the same on all machines: {own} in it is on {', '.join(having)} alone",
        MOUNT,
    )


def refused_to_root(place: str, own: str, said: Mapping[str, str]) -> Finding:
    """Return what it means that root could make nothing on any machine.

    Args:
        place: what is tried.
        own: the folder of a user in it; "": there is none.
        said: what one of them has printed.
    """
    words, kind = said.get("refused", ""), said.get("type", "")
    if _is_one(words, READ_ONLY):
        return Finding("failure", f"{place} is read-only on all machines ({kind})", MOUNT)
    squashed = ", as where a file server has root_squash" if _is_one(words, FORBIDDEN) else ""
    todo = f"make {own} in it, with the owner that users' folders have" if own else ""
    return Finding(
        "warning",
        f"{place} isn't tried: root may make nothing there{squashed} ({kind}: {words})",
        f"{todo or 'let root write there for a moment'}, and run this again: {NAME} is its user",
    )


def compare(
    place: str,
    files: Mapping[str, str],
    wrote: Mapping[str, Answer],
    read: Mapping[str, Answer],
) -> Iterator[Finding]:
    """Yield what machines have that isn't what others wrote; or that all is well.

    Args:
        place: what is tried.
        files: the name of each machine -> the file that it wrote.
        wrote, read: the name of each machine -> what it has printed of that.
    """
    found = [
        *_of_writers(place, wrote),
        *_of_groups(place, files, wrote, read),
        *_of_readers(place, files, wrote, read),
    ]
    if not found:
        users = sorted({each.said.get("user", "?") for each in wrote.values()})
        kinds = sorted({each.said.get("type", "?") for each in wrote.values()})
        found = [
            Finding(
                "ok",
                f"{place}: what each of {len(files)} machines wrote, the others read, with its "
                f"owner ({', '.join(users)}, on {', '.join(kinds)})",
            )
        ]
    yield from found


def is_read_only(wrote: Answer) -> bool:
    """Return whether a machine couldn't write, as nothing can be written there."""
    return _is_one(wrote.said.get("refused", ""), READ_ONLY)


def _of_writers(place: str, wrote: Mapping[str, Answer]) -> Iterator[Finding]:
    for node, answer in wrote.items():
        user, owner = answer.said.get("user"), answer.said.get("owner")
        words = answer.said.get("refused", "")
        if answer.problem:
            yield not_run(place, node, answer.problem)
        elif is_read_only(answer):
            yield Finding("failure", f"{place} is read-only on {node}", MOUNT)
        elif words and not _is_missing(words):
            what = f"the servers' user {user} may not write in {place} on {node}: {words}"
            yield Finding("failure", what, "see the owner and the rights of the folder there")
        elif owner is not None and owner != user:
            squash = "root_squash" if user == "0" else "all_squash"
            what = f"what servers' user {user} writes in {place} on {node} belongs to {owner}"
            yield Finding("failure", f"{what}, as where a file server has {squash}", SAME_IDS)


def _of_groups(
    place: str,
    files: Mapping[str, str],
    wrote: Mapping[str, Answer],
    read: Mapping[str, Answer],
) -> Iterator[Finding]:
    """Yield that machines have different folders, if they see nothing of each other."""
    # Who may not write there has a finding of its own, and may not look either.
    looked = [node for node in files if _may_look(wrote[node]) and not read[node].problem]
    groups = [{node} for node in looked]
    for reader, answer in read.items():
        if reader not in looked:
            continue
        seen = {node for node, file in files.items() if f"owner-{file}" in answer.said}
        one = [group for group in groups if group & (seen | {reader})]
        groups = [*(group for group in groups if group not in one), set().union(*one)]
    if len(groups) < 2:
        return
    groups.sort(key=lambda group: (-len(group), *sorted(group)))
    parts = [
        f"{', '.join(sorted(group))} ({', '.join(sorted({_kind(read, n) for n in group}))})"
        for group in groups
    ]
    yield Finding(
        "failure",
        f"{place} isn't the same on all machines: what is written on one of these, others don't "
        f"see: {'; '.join(parts)}",
        MOUNT,
    )


def _of_readers(
    place: str,
    files: Mapping[str, str],
    wrote: Mapping[str, Answer],
    read: Mapping[str, Answer],
) -> Iterator[Finding]:
    for reader, answer in read.items():
        if answer.problem:
            yield not_run(place, reader, answer.problem)
            continue
        for writer, file in files.items():
            owner, there = wrote[writer].said.get("owner"), answer.said.get(f"owner-{file}")
            if owner is None or there is None or writer == reader:
                continue
            words = answer.said.get(f"refused-{file}")
            if owner != there:
                cant = f", and can't read it ({words})" if words is not None else ""
                what = f"{reader} takes {there} for the owner of what {writer} wrote in {place}"
                yield Finding("failure", f"{what}, which there is {owner}{cant}", SAME_IDS)
            elif words is not None:
                what = f"{reader} can't read what {writer} wrote in {place}: {words or 'nothing'}"
                yield Finding("failure", what, "see the mount's options on both machines")


def _may_look(wrote: Answer) -> bool:
    """Return whether a machine has written, or couldn't as what others made isn't there."""
    words = wrote.said.get("refused", "")
    return "owner" in wrote.said or _is_missing(words)


def _kind(answers: Mapping[str, Answer], node: str) -> str:
    return answers[node].said.get("type", "?")


def _is_one(words: str, known: Sequence[str]) -> bool:
    return any(each in words.lower() for each in known)


def _is_missing(words: str) -> bool:
    return bool(re.search("nonexistent|no such file", words, re.IGNORECASE))
