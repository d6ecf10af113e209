// The browser of a page: search, order, filters, random. What a query looks like, and every order, come with the data.
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
    root.dataset.ready = "yes"; // JupyterLab may run this again
    // a key pressed here, or in the widgets beside it, is not JupyterLab's: two d in a list would delete the cell
    (root.closest(".jp-OutputArea") || root).addEventListener("focusin", event => { event.target.dataset.lmSuppressShortcuts = "true"; });
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const text = make("input", {type: "search", name: "text", placeholder: "part of a query"});
    const order = make("select", {name: "order"}, ...Object.keys(data.orders).map(name => make("option", {}, name)));
    const filters = Object.fromEntries(data.filters.map(name => {
      const counts = new Map();
      data.queries.forEach(query => query.tags[name].forEach(label => counts.set(label, (counts.get(label) || 0) + 1)));
      const options = [...counts].sort().map(([label, count]) => make("option", {value: label}, `${label} (${count})`));
      return [name, make("select", {name}, make("option", {value: ""}, "any"), ...options)];
    }));
    const random = make("button", {type: "button"}, "Random query"), reset = make("button", {type: "button"}, "Reset");
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
      view.innerHTML = list.value === "" ? "<p>No query has all that: clear the text or a filter.</p>" : data.queries[list.value].html;
      view.querySelectorAll("img").forEach(image => { image.src = "data:image/jpeg;base64," + data.pictures[image.dataset.clip]; });
    }

    function choose() {
      const words = text.value.toLowerCase().split(/\s+/);
      const found = data.orders[order.value].filter(at => words.every(word => data.queries[at].text.toLowerCase().includes(word))
        && Object.entries(filters).every(([name, menu]) => !menu.value || data.queries[at].tags[name].includes(menu.value)));
      list.replaceChildren(...found.map(at => make("option", {value: at}, data.queries[at].line)));
      list.selectedIndex = found.length ? 0 : -1;
      count.textContent = `${found.length} of ${data.said}`;
      show();
    }

    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("input", choose);
    reset.addEventListener("click", () => { form.reset(); choose(); });
    list.addEventListener("change", show);
    random.addEventListener("click", () => {
      list.selectedIndex = Math.floor(Math.random() * list.length);
      show();
    });
    root.querySelector(".egokit-unfolding").replaceWith(form, count, list, view);
    choose();
  }

  document.querySelectorAll(".egokit-browser:not([data-ready])").forEach(start);
})();
