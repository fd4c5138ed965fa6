// Answers elicitations with the TypeScript SDK 1.x.
const [packages, url, count, ...options] = process.argv.slice(2);
const sdk = `${packages}/@modelcontextprotocol/sdk/dist/esm`;
const { Client } = await import(`${sdk}/client/index.js`);
const { StreamableHTTPClientTransport } = await import(`${sdk}/client/streamableHttp.js`);
const { ElicitRequestSchema } = await import(`${sdk}/types.js`);
const { run } = await import('./agents.mjs');

await run(count, options, async (answer) => {
  const client = new Client({ name: 'test', version: '1' }, { capabilities: { elicitation: {} } });
  client.setRequestHandler(ElicitRequestSchema, answer);
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  return client;
});
