// An authorization server (oidc-provider) and an MCP server that requires its tokens. Arguments: the folder of packages, the
// port of the authorization server, the port of the MCP server, and the lifetime of access tokens in seconds.
//
// The MCP server also answers the test: POST /login follows the redirects of an authorization URL like the browser of a
// person who agrees, and returns the URL of the last redirect; GET /counts returns what was counted; POST /revoke revokes all
// grants.
import http from "node:http";

const [packages, issuerPort, mcpPort, lifetime] = process.argv.slice(2);
const { Provider } = await import(`${packages}/oidc-provider/lib/index.js`);
const issuer = `http://127.0.0.1:${issuerPort}`;
const origin = `http://127.0.0.1:${mcpPort}`;
const resource = `${origin}/mcp`;
const counts = { initialize: 0, calls: 0, refreshes: 0, tokensElsewhere: 0 };
const grants = new Set();

const provider = new Provider(issuer, {
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "read write",
        audience: resource,
        accessTokenTTL: Number(lifetime),
        accessTokenFormat: "opaque",
      }),
    },
  },
  scopes: ["offline_access", "read", "write"],
  rotateRefreshToken: true,
  pkce: { required: () => true },
  issueRefreshToken: async () => true,
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  cookies: { keys: ["test"] },
  ttl: { Grant: 3600, RefreshToken: 3600, Session: 3600, Interaction: 600 },
});
provider.on("grant.success", (context) => {
  counts.refreshes += context.oidc.params.grant_type === "refresh_token";
});

// The person agrees to everything.
const callback = provider.callback();
http
  .createServer(async (request, response) => {
    if (!request.url.startsWith("/interaction/")) return callback(request, response);
    const { prompt, params, session } = await provider.interactionDetails(request, response);
    let result = { login: { accountId: "ada" } };
    if (prompt.name === "consent") {
      const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
      grant.addOIDCScope(params.scope);
      grant.addResourceScope(resource, params.scope);
      const grantId = await grant.save();
      grants.add(grantId);
      result = { consent: { grantId } };
    }
    await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
  })
  .listen(Number(issuerPort), "127.0.0.1");

async function browse(url) {
  const cookies = new Map();
  while (url.startsWith(issuer)) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join("; ");
    const response = await fetch(url, { redirect: "manual", headers: { cookie } });
    for (const set of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(set);
      cookies.set(name, value);
    }
    const location = response.headers.get("location");
    if (!location) throw new Error(`${response.status} ${await response.text()}`);
    url = new URL(location, url).href;
  }
  return url;
}

async function read(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text;
}

function respond(response, status, value, headers = {}) {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(value));
}

const results = {
  initialize: () => ({
    protocolVersion: "2025-06-18",
    capabilities: { tools: {} },
    serverInfo: { name: "secured", version: "1" },
  }),
  ping: () => ({}),
  "tools/list": () => ({ tools: [{ name: "whoami", inputSchema: { type: "object" } }] }),
  "tools/call": (token) => ({ content: [{ type: "text", text: token.accountId }] }),
};

http
  .createServer(async (request, response) => {
    if (request.url === "/counts") return respond(response, 200, counts);
    if (request.url === "/login") {
      return browse(await read(request)).then(
        (url) => respond(response, 200, { url }),
        (error) => respond(response, 500, { error: String(error) }),
      );
    }
    if (request.url === "/revoke") {
      for (const grant of grants) await (await provider.Grant.find(grant))?.destroy();
      for (const grant of grants) await provider.AccessToken.revokeByGrantId(grant);
      return respond(response, 200, {});
    }
    if (request.url.startsWith("/.well-known/oauth-protected-resource")) {
      const scopes = { scopes_supported: ["read"], authorization_servers: [issuer] };
      return respond(response, 200, { resource, ...scopes });
    }
    const text = (request.headers.authorization ?? "").replace(/^Bearer /, "");
    if (text && request.url !== "/mcp") counts.tokensElsewhere += 1;
    const token = text && (await provider.AccessToken.find(text));
    if (!token || token.isExpired || request.url !== "/mcp") {
      const metadata = `${origin}/.well-known/oauth-protected-resource/mcp`;
      const challenge = `Bearer resource_metadata="${metadata}", scope="read"`;
      // A hostile server repeats the token.
      return respond(response, 401, { error: `unknown token ${text}` }, { "www-authenticate": challenge });
    }
    if (request.method !== "POST") return respond(response, 405, {});
    const message = JSON.parse(await read(request));
    if (message.id === undefined) return respond(response, 202, {});
    counts.initialize += message.method === "initialize";
    counts.calls += message.method === "tools/call";
    const result = results[message.method];
    const error = { code: -32601, message: "unknown method" };
    const outcome = result ? { result: result(token) } : { error };
    respond(response, 200, { jsonrpc: "2.0", id: message.id, ...outcome });
  })
  .listen(Number(mcpPort), "127.0.0.1", () => console.log("ready"));
