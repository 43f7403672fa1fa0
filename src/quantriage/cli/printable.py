"""Text from checkpoints, files and other libraries, made safe for a terminal.

A tensor or folder name may hold escape sequences that move the cursor, recolour or retitle a terminal, or
turn the direction of writing. They are shown as what they are instead of obeyed. Markup is never parsed:
everything that is printed is a plain string or a rich Text.
"""


def printable(text: str) -> str:
    """One line without control, format or direction characters: each becomes its backslash escape."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
