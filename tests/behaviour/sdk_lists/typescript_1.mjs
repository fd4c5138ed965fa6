// Lists everything and calls two tools with the TypeScript SDK 1.x.
const [packages, url] = process.argv.slice(2);
const sdk = `${packages}/@modelcontextprotocol/sdk/dist/esm/client`;
const { Client } = await import(`${sdk}/index.js`);
const { StreamableHTTPClientTransport } = await import(`${sdk}/streamableHttp.js`);
const { report } = await import('./report.mjs');

const client = new Client({ name: 'test', version: '1' });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
await report(client);
