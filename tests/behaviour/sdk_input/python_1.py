"""Answers elicitations with the Python SDK 1.x."""

import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from agents import run

url, count, *options = sys.argv[1:]


async def with_client(answer, use):
    async with streamablehttp_client(url) as (read, write, _):
        async with ClientSession(read, write, elicitation_callback=answer) as session:
            await session.initialize()
            return await use(session)


run(count, options, with_client)
