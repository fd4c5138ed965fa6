"""What a client of either Python SDK sees, as one line of JSON."""

import json


async def everything(fetch, member, key, cursor_member):
    found, cursor = [], None
    while True:
        page = await (fetch() if cursor is None else fetch(cursor=cursor))
        found += [str(getattr(item, key)) for item in getattr(page, member)]
        cursor = getattr(page, cursor_member)
        if cursor is None:
            return found


async def report(client, template_key, cursor_member):
    template_member = "resourceTemplates" if template_key == "uriTemplate" else "resource_templates"
    seen = {
        "tools": await everything(client.list_tools, "tools", "name", cursor_member),
        "prompts": await everything(client.list_prompts, "prompts", "name", cursor_member),
        "resources": await everything(client.list_resources, "resources", "uri", cursor_member),
        "templates": await everything(
            client.list_resource_templates, template_member, template_key, cursor_member
        ),
    }
    await client.call_tool("good_echo", {})
    result = {"content": [], "structuredContent": [1, "x"]}
    called = await client.call_tool("good_reply", {"result": result})
    seen["called"] = [block.text for block in called.content]
    print(json.dumps(seen))
