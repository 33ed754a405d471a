"""Several pipelines, one behind the other: declared in one file, run together, drawn."""
