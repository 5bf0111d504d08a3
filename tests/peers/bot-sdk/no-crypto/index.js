module.exports = new Proxy({}, { get: () => class {} });
