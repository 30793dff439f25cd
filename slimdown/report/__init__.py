"""Show findings to people: the console, tables in five formats, pages, figures and model cards."""
