"""What people read: the console, tables in five formats, pages, figures and model cards."""
