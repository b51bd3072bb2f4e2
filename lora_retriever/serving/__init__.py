"""The server: requests come in, adapters are found and composed for each, and answers stream out of one loop.

    request ─► schemas ─► naming (what `model` means) ─► routing (adapters, weights) ─► engine (one loop) ─► answers

`service` joins the parts and knows nothing of HTTP. `app` and `routes` are the HTTP interface, which is OpenAI's.
"""
