-- A table with row-level security: a role that does not bypass it would read only some of the rows,
-- so a mover must refuse it instead of moving half a table. Separate from the zoo, since it blocks.
CREATE SCHEMA secured;
CREATE TABLE secured.payslip (id integer PRIMARY KEY, owner text NOT NULL, amount numeric(10, 2) NOT NULL);
INSERT INTO secured.payslip SELECT i, 'u' || i % 3, i * 10 FROM generate_series(1, 90) i;
ALTER TABLE secured.payslip ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured.payslip FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON secured.payslip USING (owner = current_user);
