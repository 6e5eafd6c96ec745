-- Inserts, indices, joins, aggregates, text, an update and a window function, in memory.
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, region INTEGER);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER, amount REAL, day INTEGER, note TEXT);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
INSERT INTO customer SELECT i, printf('customer %05d', (i * 7919) % 10007), i % 17 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO purchase SELECT i, 1 + (i * 31337) % 2000, ((i * 7727) % 9973) / 10.0, i % 365, 'note ' || printf('%X', i * 2654435761) FROM n;
COMMIT;
CREATE INDEX purchase_customer ON purchase (customer);
CREATE INDEX purchase_day ON purchase (day, amount);
SELECT region, count(*), round(sum(amount), 1), max(note) FROM purchase JOIN customer ON customer.id = purchase.customer
GROUP BY region ORDER BY region;
SELECT count(*) FROM purchase WHERE note LIKE '%7A%' OR note GLOB '*[0-3][A-F]9*';
UPDATE purchase SET amount = amount * 1.1 WHERE day BETWEEN 100 AND 140;
SELECT day, round(total, 2) FROM (
  SELECT day, sum(amount) AS total, rank() OVER (ORDER BY sum(amount) DESC) AS place FROM purchase GROUP BY day
) WHERE place <= 5;
SELECT name, n FROM (
  SELECT customer.name AS name, (SELECT count(*) FROM purchase WHERE purchase.customer = customer.id AND amount > 500) AS n FROM customer
) ORDER BY n DESC, name LIMIT 5;
DELETE FROM purchase WHERE customer % 3 = 0;
SELECT count(*), round(avg(amount), 3), count(DISTINCT customer) FROM purchase;
