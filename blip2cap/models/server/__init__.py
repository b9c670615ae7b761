"""Models behind a server that speaks the chat API of OpenAI. Imports no torch."""
