// Before the first paint: the theme that was chosen here, if one was. Not a module, so that it runs at once.
(() => {
  try {
    const theme = localStorage.getItem("puna-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch { /* storage is closed to this page: the system's theme holds */ }
})();
