"""HTML documents with local pictures: text and `<img src>` in the order in which they are read.

Block elements separate paragraphs; scripts, styles and the head are dropped, the title becomes
metadata. A picture at some address, or in SVG, is left out and counted; a local one that is missing
rejects the document. Uses the standard library's parser (about 4 MB a second).
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from plait.pipeline.compressed import read_plain
from plait.pipeline.fields import Fields
from plait.pipeline.files import FileList, open_files_of
from plait.pipeline.paths import is_remote, resolve
from plait.pipeline.row_parts import Gathered, Place
from plait.pipeline.source import Json, Rejected, Sample
from plait.tokenizers.errors import SampleError

MAX_BYTES = 32 << 20
DROPPED = {"script", "style", "head", "template", "noscript", "svg", "math", "iframe", "object"}
PARAGRAPHS = {
    *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "figure"),
    *("figcaption", "blockquote", "pre", "ul", "ol", "dl", "table", "form", "fieldset", "hr"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "body", "html", "address", "details", "summary"),
}
LINES = {"br", "li", "tr", "dt", "dd", "option", "caption"}
CELLS = {"td", "th"}
IN_HEAD = {"title", "meta", "link", "base", *DROPPED}
PARAGRAPH, LINE, CELL = "\x1e", "\x1f", "\x1d"
"""Marks in the text until it is finished."""
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_BREAKS = re.compile(r"(?<![ \t\x1d])[ \t\x1d]*+[\x1e\x1f][ \t\x1d-\x1f]*+")
_CELLS = re.compile(r"(?<! ) *+\x1d[ \x1d]*+")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.I)
_SOURCES = re.compile(
    rb"<img\b[^<>]{0,4000}?\ssrc\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+))", re.I
)


class HtmlFiles(FileList):
    """HTML files under a folder; the key of each is its relative path."""

    def __init__(self, path: Path, files: list[Path], root: Path) -> None:
        super().__init__(path, files, kind="html", part="text", samples_per_task=512)
        self._root = root

    def read(self, start: int, stop: int) -> Iterator[Sample | Rejected]:
        """One sample a file, parsed when its turn comes."""
        for listed in super().read(start, stop):
            assert isinstance(listed, Sample)
            file = listed.parts[0].value
            assert isinstance(file, Path)
            try:
                yield _sample_of(listed.key, file, self._root)
            except SampleError as error:
                yield Rejected(source=str(self.path), key=listed.key, reason=str(error))


def open_source(path: Path, root: Path, fields: Fields) -> FileList:
    """All HTML files of a folder, or one."""
    del fields
    return open_files_of(path, kind="html", make=lambda p, files: HtmlFiles(p, files, root))


def open_files(root: Path, files: list[Path]) -> FileList:
    """These files."""
    return HtmlFiles(root, files, root)


def pictures_of(file: Path, root: Path) -> set[Path]:
    """The local files that a document shows, found without parsing it."""
    try:
        data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
    except OSError:
        return set()
    found = set()
    for quoted in _SOURCES.findall(data):
        name = b"".join(quoted).decode("utf-8", "replace")
        try:
            found.add(resolve(_local_name(name), file.parent, root))
        except (SampleError, ValueError):
            continue
    return found


def _sample_of(key: str, file: Path, root: Path) -> Sample:
    reader = _Reader(Gathered(Place(file.parent, root)))
    try:
        reader.feed(_closed(_decoded(read_plain(file, MAX_BYTES))))
        reader.close()
    except OSError as error:
        raise SampleError(f"cannot read file: {error.strerror or error}") from None
    except (AssertionError, RecursionError) as error:  # of the parser, on broken declarations
        raise SampleError(f"damaged HTML: {error}") from None
    reader.end_text()
    title = " ".join(reader.title.split())
    metadata: dict[str, Json] = {"title": title} if title else {}
    return Sample(key=key, parts=tuple(reader.found.parts), metadata=metadata | reader.found.note())


class _Reader(HTMLParser):
    """Collects text until a picture comes; what is missing or wrong raises SampleError."""

    def __init__(self, found: Gathered) -> None:
        super().__init__(convert_charrefs=True)
        self.found = found
        self.title = ""
        self._pieces: list[str] = []
        self._dropping: list[str] = []
        self._plain = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropping == ["head"] and tag not in IN_HEAD:
            self._dropping = []  # as in a browser, a head that is not closed ends here
        self._in_title = tag == "title" and "svg" not in self._dropping
        if tag in DROPPED:
            self._dropping.append(tag)
        elif not self._dropping:
            self._break(tag)
            self._plain += tag == "pre"
            if tag == "img":
                self._picture(dict(attrs).get("src"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in DROPPED:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag in self._dropping:
            while self._dropping.pop() != tag:
                pass
        elif not self._dropping:
            if tag in PARAGRAPHS:
                self._pieces.append(PARAGRAPH)
            self._plain = max(self._plain - (tag == "pre"), 0)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._dropping:
            if not self._plain:
                data = _BLANKS.sub(" ", data)
                if self._pieces and self._pieces[-1][-1:] in (" ", "\n", "\t"):
                    data = data.removeprefix(" ")
            if data:
                self._pieces.append(data)

    def end_text(self) -> None:
        """Turn what waits into a text part."""
        text = _BREAKS.sub(_break_of, "".join(self._pieces))
        self._pieces = []
        self.found.add_text(_CELLS.sub("\t", text).strip())

    def _break(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._pieces.append(PARAGRAPH)
        elif tag in LINES:
            self._pieces.append(LINE)
        elif tag in CELLS:
            self._pieces.append(CELL)

    def _picture(self, source: str | None) -> None:
        if not source or not source.strip():
            return
        self.end_text()
        name = _local_name(source.strip())
        if name.lower().endswith((".svg", ".svgz")) or name[:14].lower() == "data:image/svg":
            self.found.left_out += 1
        else:
            self.found.add_medium("image", name)


def _break_of(marks: re.Match[str]) -> str:
    """The end of a paragraph, or of a line; two line ends are a paragraph's."""
    signs = marks[0]
    return "\n\n" if PARAGRAPH in signs or signs.count(LINE) > 1 else "\n"


def _local_name(source: str) -> str:
    """A path without its query; an address as it is."""
    if is_remote(source) or source[:5].lower() == "data:":
        return source
    try:
        return unquote(urlsplit(source).path)
    except ValueError:
        raise SampleError(f"no path: {source[:200]!r}") from None


def _closed(text: str) -> str:
    """The document with what is opened and never closed as plain text.

    Older releases of Python's parser go back to the start of each such tag: 60 KB took 20 s.
    """
    for opening, closing in (("<!--", "-->"), ("<![", "]>"), ("<", ">")):
        end = text.rfind(closing) + 1
        text = text[:end] + text[end:].replace(opening, f"&lt;{opening[1:]}")
    return text


def _decoded(data: bytes) -> str:
    """UTF-8, or what the document says it is in."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte {error.start} is {data[error.start]:#04x}"
    said = _CHARSET.search(data[:4096])
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif said is None:
        raise SampleError(reason)
    else:
        encoding = said[1].decode()
    try:
        return data.decode(encoding)
    except (LookupError, ValueError):
        raise SampleError(f"{reason}, nor {encoding}") from None
