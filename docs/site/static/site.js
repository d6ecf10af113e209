// What scrolls by itself can be scrolled with the keyboard, too: wide tables, code and outputs.
addEventListener("load", () => {
  for (const part of document.querySelectorAll("main *, article *, aside *, .sidebar-scroll, .toc-scroll")) {
    const scrolls = /auto|scroll/.test(getComputedStyle(part).overflow);
    if (scrolls && (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) &&
        !part.matches("select, textarea, input")) part.tabIndex = 0;
  }
});
