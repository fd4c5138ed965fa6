"""Lists everything and calls two tools with the Python SDK 2.x."""

import asyncio
import sys

from mcp import Client

from report import report


async def main() -> None:
    url, era = sys.argv[1:]
    async with Client(url, mode="2026-07-28" if era == "modern" else "legacy") as client:
        await report(client, "uri_template", "next_cursor")


asyncio.run(main())
