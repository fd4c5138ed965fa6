"""Runs several agents at once, as `agents.mjs` does."""

import asyncio
import json
import os

from mcp import types


def run(count, options, with_client):
    servers, vanish = options[0].split(","), "vanish" in options[1:]
    asked = 0

    async def answer(_context, _params):
        nonlocal asked
        asked += 1
        if vanish:
            if asked == int(count):
                print("[]", flush=True)
                os._exit(0)
            await asyncio.Event().wait()
        return types.ElicitResult(action="accept", content={"n": asked})

    form = {"message": "?", "requestedSchema": {"type": "object", "properties": {"n": {"type": "number"}}}}
    requests = [{"method": "elicitation/create", "params": form}]

    async def use(client):
        results = []
        for server in servers:
            result = await client.call_tool(f"{server}_ask", {"requests": requests})
            results.append([server, result.content[0].text])
        return results

    async def agents():
        all_results = await asyncio.gather(*(with_client(answer, use) for _ in range(int(count))))
        print(json.dumps([result for results in all_results for result in results]))

    asyncio.run(agents())
