const form = document.querySelector("form");
const wrong = document.getElementById("wrong");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = new URLSearchParams(location.search);
  const login = {
    type: "m.login.password",
    identifier: { type: "m.id.user", user: form.elements.user.value.trim() },
    password: form.elements.password.value,
  };
  for (const name of ["device_id", "initial_device_display_name"]) {
    if (asked.has(name)) login[name] = asked.get(name);
  }
  if (asked.get("refresh_token") === "true") login.refresh_token = true;
  let why = "This server does not answer.";
  try {
    const headers = { "content-type": "application/json" };
    const answer = await fetch("/_matrix/client/v3/login", { method: "POST", headers, body: JSON.stringify(login) });
    const response = await answer.json();
    if (answer.ok) {
      form.hidden = true;
      document.querySelector("h1").textContent = "You are logged in";
      document.querySelector(".lead").textContent = "Close this window, and go on in the app.";
      if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(response);
      return;
    }
    why = response.error;
  } catch {
    // What is said then is said already.
  }
  wrong.textContent = why;
  wrong.hidden = false;
});
