// An OpenID provider for tests: node provider.mjs <path of oidc-provider's module> <port>
// Machines get access tokens (RFC 9068) for the resource urn:tollgate:<algorithm>. Keys are new with each start.
import { generateKeyPairSync, randomUUID } from "node:crypto";

const [module, port] = process.argv.slice(2);
const { default: Provider } = await import(module);
const issuer = `http://127.0.0.1:${port}`;

const kinds = { RS256: ["rsa", { modulusLength: 2048 }], ES256: ["ec", { namedCurve: "P-256" }], EdDSA: ["ed25519"] };
const keys = Object.entries(kinds).map(([alg, kind]) => ({
  ...generateKeyPairSync(...kind).privateKey.export({ format: "jwk" }),
  alg,
  kid: `${alg}-${randomUUID()}`,
  use: "sig",
}));

const machine = (id) => ({
  client_id: id,
  client_secret: `${id}-secret`,
  grant_types: ["client_credentials"],
  redirect_uris: [],
  response_types: [],
});

const provider = new Provider(issuer, {
  clients: [machine("globex"), machine("acme")],
  jwks: { keys },
  scopes: ["tollgate/invoke", "tollgate/models.read"],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: "tollgate/invoke tollgate/models.read",
        audience: "tollgate",
        accessTokenFormat: "jwt",
        accessTokenTTL: 600,
        jwt: { sign: { alg: resource.split(":").at(-1) } },
      }),
    },
  },
  // whose machine it is, in a nested claim and in a namespaced one
  extraTokenClaims: (ctx, token) => ({ org: { id: token.clientId }, "https://partner.example/team": "batch" }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
