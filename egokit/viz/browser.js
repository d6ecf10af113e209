// The browser of a saved page: search, order, filters, random query. The data hold each query's HTML and every order.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  let labels = 0;
  const labelled = (name, control) => {
    control.id = `egokit-${Date.now()}-${labels += 1}`; // unique among several browsers in a notebook
    return make("div", {className: `egokit-${control.localName}`}, make("label", {htmlFor: control.id}, name), control);
  };

  function start(root) {
    root.dataset.ready = "yes"; // JupyterLab may run this script more than once
    // keep key presses here and in the widgets beside it from JupyterLab's shortcuts: pressing d twice deletes the cell
    (root.closest(".jp-OutputArea") || root).addEventListener("focusin", event => {
      event.target.dataset.lmSuppressShortcuts = "true";
    });
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const text = make("input", {type: "search", name: "text", placeholder: "part of a query"});
    const order = make("select", {name: "order"}, ...Object.keys(data.orders).map(name => make("option", {}, name)));
    const filters = Object.fromEntries(data.filters.map(name => {
      const counts = new Map();
      data.queries.forEach(query => query.tags[name].forEach(
        label => counts.set(label, (counts.get(label) || 0) + 1)));
      const options = [...counts].sort().map(([label, count]) => make("option", {value: label}, `${label} (${count})`));
      return [name, make("select", {name}, make("option", {value: ""}, "any"), ...options)];
    }));
    const random = make("button", {type: "button"}, "Random query");
    const reset = make("button", {type: "button"}, "Reset");
    const form = make("form", {}, labelled("text", text), labelled("order", order),
      ...Object.entries(filters).map(([name, menu]) => labelled(name, menu)), random, reset);
    form.setAttribute("role", "search");
    const count = make("output", {});
    count.setAttribute("aria-live", "polite");
    const list = make("select", {size: 8, className: "egokit-list"});
    list.setAttribute("aria-label", "queries");
    const view = make("div", {className: "egokit-view"});
    view.setAttribute("role", "region");
    view.setAttribute("aria-label", "the query's clips");

    function show() {
      view.innerHTML = list.value === "" ? "<p>No query has all that: clear the text or a filter.</p>"
        : data.queries[list.value].html;
      view.querySelectorAll("img").forEach(image => {
        image.src = "data:image/jpeg;base64," + data.pictures[image.dataset.clip];
      });
    }

    function updateList() {
      const words = text.value.toLowerCase().split(/\s+/);
      const matches = data.orders[order.value].map(number => [number, data.queries[number]]).filter(([, query]) =>
        words.every(word => query.text.toLowerCase().includes(word))
        && Object.entries(filters).every(([name, menu]) => !menu.value || query.tags[name].includes(menu.value)));
      list.replaceChildren(...matches.map(([number, query]) => make("option", {value: number}, query.line)));
      list.selectedIndex = matches.length ? 0 : -1;
      count.textContent = `${matches.length} of ${data.total}`;
      show();
    }

    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("input", updateList);
    reset.addEventListener("click", () => { form.reset(); updateList(); });
    list.addEventListener("change", show);
    random.addEventListener("click", () => {
      list.selectedIndex = Math.floor(Math.random() * list.length);
      show();
    });
    root.querySelector(".egokit-unfolding").replaceWith(form, count, list, view);
    updateList();
  }

  document.querySelectorAll(".egokit-browser:not([data-ready])").forEach(start);
})();
