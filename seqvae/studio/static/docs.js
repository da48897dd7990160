// The API as a list, from /openapi.json.

const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (name) element.className = name;
  return element;
};

const spec = await (await fetch("/openapi.json")).json();
document.querySelector("#about").textContent = spec.info.description;

const named = (schema) => (schema?.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema);

function type(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop().replace(/^Answer_(.*)_$/, "Answer of $1");
  if (schema.anyOf) return schema.anyOf.map(type).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${type(schema.items) || "values"}`;
  const range = [schema.minimum, schema.maximum].every((limit) => limit !== undefined) ? `, ${schema.minimum} to ${schema.maximum}` : "";
  return (schema.type ?? "") + range;
}

function fields(list, title) {
  if (!list.length) return [];
  const table = make("dl");
  for (const [name, schema, needed, about] of list) {
    const usual = schema?.default !== undefined && schema.default !== null ? `, ${JSON.stringify(schema.default)} by default` : "";
    table.append(make("dt", name), make("dd", [`${type(schema)}${usual}${needed ? ", required" : ""}`, about].filter(Boolean).join(": ")));
  }
  return [make("p", title, "note"), table];
}

const properties = (schema) => Object.entries(schema?.properties ?? {}).map(([name, one]) =>
  [name, one, (schema.required ?? []).includes(name), one.description]);

for (const [path, verbs] of Object.entries(spec.paths)) {
  for (const [verb, route] of Object.entries(verbs)) {
    const place = make("section", "", "route");
    const line = make("p");
    line.append(make("b", verb.toUpperCase()), make("code", path));
    place.append(line, make("p", route.description ?? route.summary));
    place.append(...fields((route.parameters ?? []).map((one) => [one.name, one.schema, one.required, one.description]), "in the address"));
    for (const [kind, content] of Object.entries(route.requestBody?.content ?? {})) {
      place.append(...fields(properties(named(content.schema)), kind));
    }
    const answer = route.responses?.["200"]?.content?.["application/json"]?.schema;
    const result = named(answer)?.properties?.result ?? answer;
    const shape = named(result?.anyOf?.[0] ?? result);
    if (shape?.properties) place.append(...fields(properties(shape), "result"));
    document.querySelector("#routes").append(place);
  }
}
