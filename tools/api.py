"""`make api`: build/api, the reference made of the package's docstrings, by pdoc. It opens offline."""

import sys
from pathlib import Path

import pdoc
import pdoc.render

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Argument: where it goes; build/api, where none is given."""
    folder = Path(arguments[0]) if arguments else ROOT / "build" / "api"
    pdoc.render.configure(docformat="restructuredtext", show_source=False)
    pdoc.pdoc("rseqlab", "!rseqlab.cli.__main__", output_directory=folder)
    for page in folder.rglob("*.html"):  # pdoc shows the values of constants: some are places on this machine
        page.write_text(page.read_text().replace(str(ROOT), "."))
    print(folder / "rseqlab.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
