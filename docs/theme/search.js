/* The search treats every word of a question as the beginning of a word, so that "a" finds all that
   begins with it. Words without a meaning of their own are left out before the search sees them. */
(() => {
  const QUERY = 2; // the kind of message by which the theme asks its search worker
  const empty = new Set(
    "a an and are as at be by can do does for from how i in is it me my of on or the this to what when which with".split(" "),
  );
  const kept = (query) => {
    const words = query.split(/\s+/).filter((word) => !empty.has(word.toLowerCase()));
    return words.length > 0 ? words.join(" ") : query;
  };
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...more) {
    const asked = message && message.type === QUERY && typeof message.data === "string";
    return post.call(this, asked ? { ...message, data: kept(message.data) } : message, ...more);
  };
})();
