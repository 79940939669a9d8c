"""Which tokens are targets: spans that are read and not learned leave the loss mask.

A document keeps its spans as parts came: a prompt and an answer are two, of one modality or not. A
span is not learned with its markers, and <eos> belongs to the last span. Spans of some modalities
can be read alone (`mask`), all but the last (`learn="last"`), or those for which a column of the
source, kept in each document's metadata, has false in its list (`learn="COLUMN"`, one value a
span; a document without the column is learned whole). The order of rows does not depend on it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from plait.kernels.fill_rows import Pieces
from plait.pipeline.stream import Stream
from plait.pipeline.window import Window
from plait.tokenizers.errors import ConfigError

FIRST = 100
"""Documents of each stream in which a column of the metadata is looked for."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Which spans are learned; all of them, if nothing is said."""

    mask: tuple[str, ...] = ()
    """Modalities that are read alone."""
    learn: str = "all"
    """`all`, `last`, or a key of the documents' metadata."""

    def __bool__(self) -> bool:
        """Whether any span may be read alone."""
        return bool(self.mask) or self.learn != "all"

    def check(self, modalities: Collection[str], streams: Sequence[Stream]) -> None:
        """ConfigError where a modality is none, or no stream has such a column."""
        for name in self.mask:
            if name not in modalities:
                raise ConfigError(f"mask: no modality {name!r}; there is {', '.join(modalities)}")
        if self.learn in ("all", "last"):
            return
        firsts = [s.document(i) for s in streams for i in range(min(FIRST, len(s)))]
        there = dict.fromkeys(key for document in firsts for key in document.metadata)
        if self.learn not in there:
            urls, keys = ", ".join(stream.url for stream in streams), ", ".join(there) or "nothing"
            raise ConfigError(
                f"learn {self.learn!r}: {urls} has no such column beside its documents; the first "
                f"{FIRST} have {keys}. It may be all, last, or a column of lists of true and false"
            )

    def unmask(
        self,
        stream: Stream,
        window: Window,
        pieces: Pieces,
        rows: Sequence[int],
        to: Sequence[int],
        loss_mask_BT: Tensor,
    ) -> None:
        """Take targets in spans that are only read out of rows `to` of a mask, filled by `rows`."""
        mask_BT = loss_mask_BT.numpy()
        for row, b in zip(rows, to, strict=True):
            at = 0
            for p in range(*pieces.rows[row : row + 2].tolist()):
                start, stop, again = (
                    int(column[p]) for column in (pieces.starts, pieces.stops, pieces.again)
                )
                document = int(pieces.documents[p])
                shift = at + again - start - 1  # the position before a place's own
                for first, end in self._read(stream, window, document) if document >= 0 else ():
                    begin = max(first, start + 1 - again)
                    mask_BT[b, begin + shift : max(begin, min(end, stop)) + shift] = False
                at += stop - start + again

    def _read(self, stream: Stream, window: Window, document: int) -> list[tuple[int, int]]:
        """Places (first, end) of a document that are read alone."""
        spans = slice(*window.span_starts[document : document + 2].tolist())
        kinds, lengths = window.kinds[spans].tolist(), window.lengths[spans].tolist()
        learned = self._learned(stream, window, document, len(kinds))
        found, place = [], 1
        for number, (kind, length) in enumerate(zip(kinds, lengths, strict=True)):
            modality = window.tokenizers[kind].modality
            end = place + length + 2 * (modality != "text")
            if modality in self.mask or not learned[number]:
                found.append((place, end + (number == len(kinds) - 1)))
            place = end
        return found

    def _learned(
        self, stream: Stream, window: Window, document: int, spans: int
    ) -> Sequence[object]:
        """Whether each span is learned, the modality aside."""
        if self.learn == "all":
            return [True] * spans
        if self.learn == "last":
            return [False] * (spans - 1) + [True]
        about = stream.document(int(window.documents[document]))
        column = about.metadata.get(self.learn)
        if column is None:
            return [True] * spans
        if not isinstance(column, list) or len(column) != spans:
            raise ConfigError(
                f"learn {self.learn!r}: {stream.url}, document {about.key}: {column!r}, should be "
                f"a list of {spans} true or false, one a span"
            )
        return column


ALL = Learned()
