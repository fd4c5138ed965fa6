// Lists everything and calls two tools with the TypeScript SDK 2.x.
const [packages, url, era] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } = await import(
  `${packages}/@modelcontextprotocol/client/dist/index.mjs`
);
const { report } = await import('./report.mjs');

const mode = era === 'modern' ? { pin: '2026-07-28' } : 'legacy';
const client = new Client({ name: 'test', version: '1' }, { versionNegotiation: { mode } });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
await report(client);
