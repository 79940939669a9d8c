import base64
import time

import pytest

from plait.pipeline.find import find_sources, open_sources
from plait.pipeline.source import Rejected

from ..made_sources import png, write


def read(tmp_path, text, name="page.html"):
    data = text if isinstance(text, bytes) else text.encode()
    (source,) = open_sources(write(tmp_path / "set" / name, data))
    (sample,) = source.read(0, 1)
    return sample


def texts(tmp_path, text):
    return [part.value for part in read(tmp_path, text).parts]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one<p>two", "one\n\ntwo"),
        ("a <b> bold</b>\n  word", "a bold word"),
        ("<h1>Head</h1>\n<div> <p>x</p> </div>", "Head\n\nx"),
        ("one<br>two<br><br>three", "one\ntwo\n\nthree"),
        ("<ul><li>a<li>b</ul>c", "a\nb\n\nc"),
        ("<table><tr><td>a</td> <td>b</td></tr><tr><td>c<td>d</table>", "a\tb\nc\td"),
        ("<pre>  x\n    y</pre> z", "x\n    y\n\nz"),
        ("a<script>b < c</script><style>p {}</style><!-- d -->e", "ae"),
        ("&lt;p&gt; &eacute;&#8212;&amp;amp;", "<p> \xe9\u2014&amp;"),
        ("<head><title>t</title><p>no end of head", "no end of head"),
        ("<p>a<svg><title>s</title><text>drawn</text></svg>b<noscript>c</noscript>", "ab"),
        ("<![if x]>a<![endif]>", "a"),
        ("</div></p>a</script>", "a"),
        ("<p>1 < 2 <p", "1 < 2 <p"),
        ("<!-- a --> b <!-- c <p>d", "b <!-- c\n\nd"),
    ],
)
def test_text_in_reading_order(tmp_path, html, text):
    assert texts(tmp_path, html) == [text]


@pytest.mark.parametrize(
    ("head", "repeated", "tail"),
    [
        *[("", "<a ", ""), ("", "<!--", "<p>"), ("", '<a b="', ""), ("", "<![CDATA[", "")],
        *[("<pre>", " ", "a"), ("<table>", "<td> ", ""), ("", "<img ", ">"), ("", "<div>", "")],
    ],
)
def test_no_document_takes_for_ever(tmp_path, head, repeated, tail):
    """What is read again from each of 30,000 places takes minutes."""
    write(tmp_path / "set" / "a.png", png())
    began = time.process_time()
    read(tmp_path, head + repeated * 30_000 + tail)
    assert len(open_sources(tmp_path / "set")) == 2
    assert time.process_time() - began < 5


def test_title_and_encoding(tmp_path):
    page = "<meta charset='latin-1'><title> A\n title </title><body>caf\xe9"
    sample = read(tmp_path, page.encode("latin-1"))
    assert sample.parts[0].value == "caf\xe9" and sample.metadata == {"title": "A title"}
    assert texts(tmp_path, b"\xef\xbb\xbfa") == ["a"]
    assert texts(tmp_path, "caf\xe9".encode("utf-16")) == ["caf\xe9"]
    assert read(tmp_path, b"caf\xe9").reason == "not UTF-8: byte 3 is 0xe9"
    for said in (b"klingon", b"zlib", b"utf-8"):
        assert "nor " + said.decode() in read(tmp_path, b"<meta charset=" + said + b">\xff").reason


def test_pictures_stand_where_they_are_shown(tmp_path):
    write(tmp_path / "set" / "img" / "a b.png", png())
    data = base64.b64encode(png(7)).decode()
    page = (
        '<p>one<img alt="x" src="img/a%20b.png?v=2#top"><p>two<img src=https://e.org/c.png>'
        f'three<img src="//e.org/d.png"><IMG SRC="data:image/png;base64,{data}">'
        "<img src='logo.svg'><img><img src=''>four"
    )
    sample = read(tmp_path, page)
    assert [(p.kind, p.value) for p in sample.parts] == [
        ("text", "one"),
        ("image", tmp_path / "set" / "img" / "a b.png"),
        ("text", "two"),
        ("text", "three"),
        ("image", png(7)),
        ("text", "four"),
    ]
    assert sample.metadata == {"images_left_out": 3}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("gone.png", "missing file: gone.png"),
        ("/etc/passwd", "absolute or empty path"),
        ("file:///etc/passwd", "its address"),
        ("../../../x.png", "path leaves the source"),
        ("%2e%2e/%2e%2e/%2e%2e/x.png", "path leaves the source"),
        ("data:image/png,abc", "data address without base64"),
        ("data:image/png;base64,a", "damaged data address"),
        ("http://[x", "its address"),
        ("a\0b.png", "absolute or empty path"),
    ],
)
def test_pictures_that_are_not_there(tmp_path, source, reason):
    sample = read(tmp_path, f'<p>a<img src="{source}">')
    if reason == "its address":
        assert sample.metadata == {"images_left_out": 1}
    else:
        assert isinstance(sample, Rejected) and reason in sample.reason


def test_pictures_of_documents_are_no_loose_pictures(tmp_path):
    write(tmp_path / "set" / "page.html", b"<p>a<img\n src='a.png'><img src=\"b/c%20d.png\">")
    for name in ("a.png", "b/c d.png", "loose.png"):
        write(tmp_path / "set" / name, png())
    found = find_sources(tmp_path / "set").sources
    assert [(s.kind, len(s)) for s in found] == [("images", 1), ("html", 1)]
    assert next(found[0].read(0, 1)).key == "loose.png"


def test_documents_too_large_and_gone(tmp_path, monkeypatch):
    (source,) = open_sources(write(tmp_path / "set" / "a.html", b"<p>text").parent)
    monkeypatch.setattr("plait.pipeline.sources.html.MAX_BYTES", 3)
    (sample,) = source.read(0, 1)
    assert sample.reason == "file too large: more than 3 bytes" and sample.key == "a.html"
    (tmp_path / "set" / "a.html").unlink()
    (sample,) = source.read(0, 1)
    assert sample.reason == "cannot read file: No such file or directory"
