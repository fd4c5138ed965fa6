"""Answers elicitations with the Python SDK 2.x, in the era that is the first option."""

import sys

from mcp import Client

from agents import run

url, count, era, *options = sys.argv[1:]


async def with_client(answer, use):
    mode = "2026-07-28" if era == "modern" else "legacy"
    async with Client(url, mode=mode, elicitation_callback=answer) as client:
        return await use(client)


run(count, options, with_client)
