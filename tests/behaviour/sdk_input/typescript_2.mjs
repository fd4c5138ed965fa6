// Answers elicitations with the TypeScript SDK 2.x, in the era that is the first option.
const [packages, url, count, era, ...options] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } = await import(
  `${packages}/@modelcontextprotocol/client/dist/index.mjs`
);
const { run } = await import('./agents.mjs');

const mode = era === 'modern' ? { pin: '2026-07-28' } : 'legacy';
await run(count, options, async (answer) => {
  const client = new Client(
    { name: 'test', version: '1' },
    { capabilities: { elicitation: {} }, versionNegotiation: { mode } },
  );
  client.setRequestHandler('elicitation/create', answer);
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  return client;
});
