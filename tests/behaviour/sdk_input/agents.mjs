// Runs several agents at once. Each calls the tool `ask` of each server, and accepts what it is asked. With the option
// `vanish` the process ends once all agents were asked. Prints the results as one line of JSON.
export async function run(count, options, connect) {
  const [servers, vanish] = [options[0].split(','), options[1] === 'vanish'];
  let asked = 0;
  const answer = async () => {
    asked += 1;
    if (vanish) {
      if (asked === Number(count)) {
        console.log('[]');
        process.exit(0);
      }
      await new Promise(() => {});
    }
    return { action: 'accept', content: { n: asked } };
  };
  const form = { message: '?', requestedSchema: { type: 'object', properties: { n: { type: 'number' } } } };
  const requests = [{ method: 'elicitation/create', params: form }];
  const agent = async () => {
    const client = await connect(answer);
    const results = [];
    for (const server of servers) {
      const { content } = await client.callTool({ name: `${server}_ask`, arguments: { requests } });
      results.push([server, content[0].text]);
    }
    return results;
  };
  const all = await Promise.all(Array.from({ length: Number(count) }, agent));
  console.log(JSON.stringify(all.flat()));
  process.exit(0);
}
