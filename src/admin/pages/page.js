// What changes by itself: pieces of the page by their ids, made by the server. Only while somebody looks.
const from = document.body.dataset.live;
if (from) {
  let source = null;
  const look = () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (!source) {
      source = new EventSource(from);
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
