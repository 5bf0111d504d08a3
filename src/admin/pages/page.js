// Copy buttons, which are hidden without this script.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const text = document.getElementById(button.dataset.copy);
  const label = button.firstElementChild;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let copied = false;
    try {
      await navigator.clipboard.writeText(text.textContent);
      copied = true;
    } catch {
      // Without HTTPS a browser has no clipboard object; what is selected can be copied all the same.
      getSelection().selectAllChildren(text);
      copied = document.execCommand("copy");
    }
    label.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => (label.textContent = "Copy"), 2500);
  });
}

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
