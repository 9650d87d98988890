"""The speech server: OpenAI's speech API, voices, conversations and a WebSocket over one engine (docs/serving.md)."""
