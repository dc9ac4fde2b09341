"""What is shown in a terminal: progress bars, and text from outside on one printable line."""
