// What changes by itself: pieces of the page by their ids, made by the server. Only while somebody looks.
const from = document.body.dataset.live;
if (from) {
  let source = null;
  let again = 0;
  const look = () => {
    if (document.hidden) {
      clearTimeout(again);
      source?.close();
      source = null;
    } else if (!source) {
      source = new EventSource(from);
      source.onerror = () => {
        // Refused, as when too many look: a browser does not ask again by itself then.
        if (source?.readyState !== EventSource.CLOSED) return;
        source = null;
        again = setTimeout(look, 15_000);
      };
      source.onmessage = (event) => {
        for (const [id, html] of Object.entries(JSON.parse(event.data))) {
          const piece = document.getElementById(id);
          if (piece && piece.innerHTML !== html) piece.innerHTML = html;
        }
      };
    }
  };
  document.addEventListener("visibilitychange", look);
  look();
}
