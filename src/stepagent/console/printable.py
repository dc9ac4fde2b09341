"""Makes text from outside safe to show in a message: one printable line."""


def shown(value: object) -> str:
    """A short, printable description of a value from a file."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return f"'{printable(value)}'"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case int() if abs(value) > 10**15:
            return "a huge number"
        case _:
            return repr(value)


def printable(text: str, limit: int = 60) -> str:
    """The first `limit` characters of a text, with line breaks and terminal codes escaped."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text[:limit]
    )
    return shown + "..." * (len(text) > limit)
