// What a client of either TypeScript SDK sees, as one line of JSON.
async function all(list, member, key) {
  const found = [];
  let cursor;
  do {
    const page = await list(cursor === undefined ? {} : { cursor });
    found.push(...page[member].map((item) => item[key]));
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  return found;
}

export async function report(client) {
  const tools = await all((page) => client.listTools(page), 'tools', 'name');
  const prompts = await all((page) => client.listPrompts(page), 'prompts', 'name');
  const resources = await all((page) => client.listResources(page), 'resources', 'uri');
  const templates = await all((page) => client.listResourceTemplates(page), 'resourceTemplates', 'uriTemplate');
  const result = { content: [], structuredContent: [1, 'x'] };
  await client.callTool({ name: 'good_echo', arguments: {} });
  const { content } = await client.callTool({ name: 'good_reply', arguments: { result } });
  const called = content.map((block) => block.text);
  console.log(JSON.stringify({ tools, prompts, resources, templates, called }));
  process.exit(0);
}
