"""From a run to sentences, figures and the report. Nothing here measures."""
