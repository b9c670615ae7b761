"""`python -m blip2cap`."""

from blip2cap.cli import app

app()
