"""Reading a JSON file of any size piece by piece."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

from utils.io.errors import UserError

CHUNK = 2**22  # characters
DECODER, BLANK = json.JSONDecoder(), " \t\r\n"
BLANKS, COMMA = re.compile(f"[{BLANK}]*"), re.compile(f"[{BLANK}]*,[{BLANK}]*")
AFTER_VALUES = {*",:]}", *BLANK}
# Outlines take most of a COCO file: lists of more numbers than any box has, emptied before they are decoded. Short ones
# stay, as they may be a box with numbers too many, which the message shows.
OUTLINE = re.compile(r"\[(?:[^]\[\"{}a-zA-Z,]*+,){5}[^]\[\"{}a-zA-Z]{100,}+\]")


class JsonStream:
    """Takes the values of a JSON text one after another, and holds no more of it than the largest of them.

    Lists that hold nothing but numbers, six or more of them, come out empty where 100 or more characters follow the
    fifth. Everything raises ValueError where the text is not valid JSON.
    """

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Yield before each item of a list or dict, which the caller must take."""
        self.take(opening)
        more = self.peek() != closing
        while more:
            yield
            # Nearly always the text at hand goes on with a comma, and one match is faster than peeking.
            comma = COMMA.match(self.text, self.at) or (self.peek() == "," and COMMA.match(self.text, self.at))
            more = bool(comma)
            self.at = comma.end() if comma else self.at
        self.take(closing)

    def value(self) -> object:
        """Take a whole value."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._read_on():
                    continue
                raise UserError(f"{error.msg} at {self.text[error.pos : error.pos + 30]!r}") from error
            if self.text[end : end + 1] not in AFTER_VALUES and self._read_on():
                continue  # a number may go on
            self.at = end
            return value

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise UserError(f"expected {character} at {self.text[self.at : self.at + 30]!r}")
        self.at += 1

    def peek(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            character = self.text[self.at : self.at + 1]
            if character == "" and not self._read_on():
                return ""
            if character and character not in BLANK:
                return character
            self.at = BLANKS.match(self.text, self.at).end()

    def _read_on(self) -> bool:
        rest = self.text[self.at :]
        # Ever larger pieces, so that a large value is not decoded from its start too many times.
        new = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at = OUTLINE.sub("[]", rest + new), 0
        return new != ""
