// Threads that go over and under.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.5, 3.5), cell = floor(p), f = p - cell - 0.5;
    float over = mod(cell.x + cell.y * float(count(0, 1, 3)), float(count(1, 2, 4))) < 1.0 ? 1.0 : 0.0;
    vec2 across = over > 0.5 ? f.xy : f.yx;
    float width = between(2, 0.3, 0.47);
    float tube = sqrt(max(0.0, 1.0 - pow(across.x / width, 2.0))), bow = cos(PI * across.y);
    float below_tube = sqrt(max(0.0, 1.0 - pow(across.y / width, 2.0)));
    vec3 up = over > 0.5 ? ink(3) : ink(4), low = over > 0.5 ? ink(4) : ink(3);
    vec3 under = mix(0.2 * ink(5), low * below_tube, step(abs(across.y), width) * 0.6);
    float fray = 0.85 + 0.3 * noise(vec2(8.0, 2.0) * across + 5.0 * cell);
    colour = vec4(abs(across.x) < width ? up * tube * (0.5 + 0.5 * bow) * fray : under, 1);
}
