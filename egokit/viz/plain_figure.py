"""A matplotlib figure whose texts are drawn as they are, whoever wrote them."""
import contextlib
import warnings
from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.text import Text

from egokit.runs.shown_text import shown


class PlainFigure(Figure):
    """A figure that takes no text for a formula or TeX, and draws what is invisible as an escape.

    A character that no font has is an empty box, without a warning for each of them. A notebook shows the figure with
    its alternative text.
    """

    def _ipython_display_(self) -> None:
        from egokit.viz.alternative_text import show
        show(self)

    def draw(self, renderer) -> None:
        with self._plain_texts():
            super().draw(renderer)

    def get_tightbbox(self, *arguments, **options):
        with self._plain_texts():
            return super().get_tightbbox(*arguments, **options)

    @contextlib.contextmanager
    def _plain_texts(self) -> Iterator[None]:
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_text("\n".join(map(shown, text.get_text().split("\n"))))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from|Matplotlib currently does not support")
            yield
