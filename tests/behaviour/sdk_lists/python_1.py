"""Lists everything and calls two tools with the Python SDK 1.x."""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from report import report


async def main() -> None:
    async with streamablehttp_client(sys.argv[1]) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            await report(session, "uriTemplate", "nextCursor")


asyncio.run(main())
