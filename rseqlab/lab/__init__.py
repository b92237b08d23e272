"""How anything is run: declared, in a child, timed, judged, recorded."""
