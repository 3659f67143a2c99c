// Filters by payload fields. Values come from the collection, so they are only ever set as text.

export class Facets {
  #chosen = new Map(); // field -> Map(JSON of value -> value)
  #place;
  #onChange;

  constructor(place, onChange) {
    this.#place = place;
    this.#onChange = onChange;
  }

  get count() {
    return [...this.#chosen.values()].reduce((sum, values) => sum + values.size, 0);
  }

  clear() {
    this.#chosen.clear();
    for (const box of this.#place.querySelectorAll("input")) box.checked = false;
  }

  // Qdrant's filter: any of the values of each field.
  get filter() {
    const must = [...this.#chosen]
      .filter(([, values]) => values.size)
      .map(([key, values]) => ({ should: [...values.values()].map((value) => ({ key, match: { value } })) }));
    return must.length ? { must } : undefined;
  }

  show(facets) {
    const useful = facets.filter(({ values }) => values.length > 1);
    this.#place.replaceChildren(...useful.map((facet) => this.#fieldset(facet)));
    return useful.length > 0;
  }

  #fieldset({ field, values }) {
    const set = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = field;
    set.append(legend, ...values.map((value) => this.#choice(field, value)));
    return set;
  }

  #choice(field, { value, count }) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const name = document.createElement("span");
    const number = document.createElement("span");
    box.type = "checkbox";
    name.textContent = String(value);
    number.className = "count";
    number.textContent = count.toLocaleString();
    label.append(box, name, number);
    const id = JSON.stringify(value);
    box.checked = this.#chosen.get(field)?.has(id) ?? false;
    box.addEventListener("change", () => {
      const values = this.#chosen.get(field) ?? new Map();
      if (box.checked) values.set(id, value);
      else values.delete(id);
      this.#chosen.set(field, values);
      this.#onChange();
    });
    return label;
  }
}
