"""The page of one or several runs: one HTML file with the result, the charts and the episodes, which needs no network.

`collect.py` reads a run, `sample.py` its episodes, `charts.py` and `encoding.py` make the charts, `sentences.py` the
sentences, and `render.py` puts them into `page.html`.
"""

from r3core.page.export import write_csv, write_png
from r3core.page.render import PAGE, version, write_page

__all__ = ["PAGE", "version", "write_csv", "write_page", "write_png"]
